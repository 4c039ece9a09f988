// Buttons that save or copy the text of an element of this page:
//   <button type="button" data-download="settings.yaml" data-of="ID">, <button type="button" data-copy data-of="ID">
const FILE_TYPES = { csv: "text/csv", json: "application/json", yaml: "application/yaml" };

/** Saves a text as a file of this name. */
function saveText(name, text) {
  const type = FILE_TYPES[name.split(".").pop()] ?? "text/plain";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Copies a text; where the clipboard's own way is closed, by a selection. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    if (!copied) throw new Error("the browser refuses to copy");
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-of]");
  if (!button) return;
  const text = document.getElementById(button.dataset.of).textContent;
  if (button.dataset.download) saveText(button.dataset.download, text);
  if (button.dataset.copy === undefined) return;
  const before = button.dataset.label ?? button.textContent;
  button.dataset.label = before;
  button.textContent = await copyText(text).then(() => "Copied", () => "Not copied");
  setTimeout(() => (button.textContent = before), 2000);
});
