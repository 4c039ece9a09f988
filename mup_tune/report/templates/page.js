// Opens folds for paper.
const folded = new Set();
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open])")) { each.open = true; folded.add(each); }
});
addEventListener("afterprint", () => {
  for (const each of folded) each.open = false;
  folded.clear();
});
