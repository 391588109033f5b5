// What a page cannot do without a script: keep the tab's place over a reload, keep a file that is
// dropped beside the drop area from replacing the page, and stop an answer with Escape.
window.longread = {
  remember(place) {
    sessionStorage.setItem("longread.place", place || "");
  },
};
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("lr-dragging");
});
for (const name of ["dragleave", "drop", "dragend"]) {
  document.addEventListener(name, (event) => {
    if (name !== "dragleave" || event.relatedTarget === null) {
      document.body.classList.remove("lr-dragging");
    }
  });
}
// Where files can be chosen; a conversation is left for it.
async function fileInput() {
  for (let tries = 0; tries < 200; tries += 1) {
    const input = document.querySelector("#file input[type=file]");
    if (input) return input;
    if (tries === 0) document.querySelector("#new")?.click();
    await new Promise((later) => setTimeout(later, 50));
  }
  return null;
}
// One sentence above the page, until the next click.
function say(text) {
  document.querySelector("#dropped")?.remove();
  const notice = document.createElement("div");
  notice.id = "dropped";
  notice.className = "lr-notice lr-info";
  notice.setAttribute("role", "status");
  notice.textContent = text;
  document.querySelector("#main")?.prepend(notice);
  document.addEventListener("click", () => notice.remove(), { once: true, capture: true });
}
async function openFirst(files) {
  const input = await fileInput();
  if (!input) return say("The file was not taken. Choose \u201cRead a document\u201d first.");
  const first = new DataTransfer();
  first.items.add(files[0]);
  input.files = first.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
  if (files.length > 1) say(`One document at a time: ${files[0].name} is opened.`);
}
document.addEventListener(
  "drop",
  (event) => {
    event.preventDefault();
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length || (files.length === 1 && event.target.closest?.("#file"))) return;
    event.stopPropagation(); // of several Gradio would not say which it takes
    document.body.classList.remove("lr-dragging");
    void openFirst(files);
  },
  { capture: true },
);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  document.querySelector("#stop")?.click();
});
// Gradio labels each message with its raw Markdown, which a screen reader would read as well.
new MutationObserver(() => {
  for (const message of document.querySelectorAll("#messages [data-testid][aria-label]")) {
    message.removeAttribute("aria-label");
  }
}).observe(document.documentElement, { childList: true, subtree: true });
