// The live parts of the console. Everything else works without this file.
"use strict";

for (const button of document.querySelectorAll("button.copy")) {
  if (!navigator.clipboard) break;
  button.hidden = false;
  const text = button.textContent;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
    button.textContent = button.dataset.done;
    setTimeout(() => { button.textContent = text; }, 2000);
  });
}

// Now: the server sends what has changed as HTML, made by the same templates as the page.
const figures = document.getElementById("figures");
if (figures && window.EventSource) {
  const contact = document.getElementById("contact");
  const rows = document.getElementById("rows");
  const inFlight = document.getElementById("in-flight");
  const source = new EventSource(figures.dataset.events);
  const say = (text) => { if (contact.textContent !== text) contact.textContent = text; };
  source.addEventListener("figures", (event) => {
    say(figures.dataset.live);
    if (!figures.contains(document.activeElement)) figures.innerHTML = JSON.parse(event.data);
  });
  const replace = (body) => (event) => {
    if (!body.contains(document.activeElement)) body.innerHTML = JSON.parse(event.data);
  };
  source.addEventListener("in-flight", replace(inFlight));
  source.addEventListener("recent", replace(rows));
  source.addEventListener("ended", (event) => {
    const holder = document.createElement("tbody");
    holder.innerHTML = JSON.parse(event.data);
    rows.prepend(...holder.children);
    while (rows.children.length > 100) rows.lastElementChild.remove();
  });
  source.addEventListener("signed-out", () => { source.close(); location.reload(); });
  source.addEventListener("error", () => say(figures.dataset.lost));
  window.addEventListener("pagehide", () => source.close());
}
