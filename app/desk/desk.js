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
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const input = document.querySelector("#file input[type=file]");
  const files = event.dataTransfer?.files;
  if (!input || !files?.length || event.target.closest?.("#file")) return;
  input.files = files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
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
