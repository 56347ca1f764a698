"""What a person runs from a shell: the command line's own parts, and the commands that are no stage of their own."""
