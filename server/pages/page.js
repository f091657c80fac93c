"use strict";
// Keeps what is shown fresh: fetches this very page again and puts its live parts in the place of the old ones.
const every = Number(document.querySelector("[data-every]")?.dataset.every ?? 0);
const lost = document.getElementById("lost");
const parts = () => [...document.querySelectorAll("[data-live]")];
const shown = new Map(parts().map((part) => [part.id, part.outerHTML]));

function put(part, newer) {
  const open = [...part.querySelectorAll("details[open]")].map((one) => one.id);
  shown.set(part.id, newer.outerHTML);
  part.replaceWith(newer);
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
}

async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { redirect: "error" });
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts()) {
      const newer = page.getElementById(part.id);
      if (newer && newer.outerHTML !== shown.get(part.id)) put(part, document.adoptNode(newer));
    }
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}

if (every > 0 && lost) setInterval(look, every * 1000);
for (const drawing of document.querySelectorAll(".lineage")) drawing.scrollLeft = drawing.scrollWidth;
