// In the search's grammar a dash before a word excludes it; whoever types a flag looks for it.
document.addEventListener("input", ({ target }) => {
  if (target.matches(".md-search__input")) target.value = target.value.replace(/(^|\s)-+/g, "$1");
}, true);
