// In the search's grammar a dash before a word excludes it; whoever types a flag (--name) looks for it. One dash still excludes.
document.addEventListener("input", ({ target }) => {
  if (!target.matches(".md-search__input")) return;
  const bare = (text) => text.replace(/(^|\s)--+(?=\p{L})/gu, "$1");
  const wanted = bare(target.value);
  if (wanted === target.value) return;
  const caret = bare(target.value.slice(0, target.selectionStart) + "x").length - 1;
  target.value = wanted;
  target.setSelectionRange(caret, caret);
}, true);
