"""When a response ends: end-of-sequence tokens, stop strings across token borders, and length."""

from typing import Any, NamedTuple

from navtoken.engine.sequence import Sequence


class End(NamedTuple):
    """Why a response ends with a token."""

    reason: str
    """`stop` or `length`."""
    stop_string: str | None = None


def end_of(row: Sequence, num_response: int, eos_token_ids: frozenset[int], tokenizer: Any) -> End | None:
    """Does the response end with its token number `num_response` (counted from 1)?

    Before `min_tokens` neither end tokens nor stop strings count.
    """
    sampling = row.sampling
    token_id = row.token_ids[row.prompt_len + num_response - 1]
    if num_response >= sampling.min_tokens:
        if token_id in eos_token_ids and not sampling.ignore_eos:
            return End("stop")
        if sampling.stop and (found := _stop_string(row, num_response, tokenizer)):
            return End("stop", found)
    if row.prompt_len + num_response >= row.max_len:
        return End("length")
    return None


def _stop_string(row: Sequence, num_response: int, tokenizer: Any) -> str | None:
    """The stop string that this token completes; one that was there before `min_tokens` does not count.

    Only the end of the response is decoded: a token holds at least a byte, a character at most four.
    """
    stop = row.sampling.stop
    reach = 4 * max(map(len, stop)) + 1
    end = row.prompt_len + num_response
    tail_ids = row.token_ids[max(row.prompt_len, end - reach) : end]
    tail = tokenizer.decode(tail_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    last = tokenizer.decode(tail_ids[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # What a character that was not whole became is new.
    known = len(last.rstrip("\ufffd"))
    found = [(tail.find(text, max(0, known - len(text) + 1)), text) for text in stop]
    return min(((at, text) for at, text in found if at >= 0), default=(-1, None))[1]
