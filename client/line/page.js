// Live refresh, dropping files, counting what is picked. The page works without it, but for giving files.
"use strict";

const lost = document.getElementById("lost");

// Put the new children in place of the old ones; what is equal stays, with its picture, its focus and its tick.
function renew(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.id !== fresh.id) { old.replaceWith(fresh); return; }
  for (const name of old.getAttributeNames()) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const name of fresh.getAttributeNames()) old.setAttribute(name, fresh.getAttribute(name));
  const known = new Map([...old.children].filter((one) => one.id).map((one) => [one.id, one]));
  const kept = [...fresh.childNodes].map((one) => {
    const before = one.id && known.get(one.id);
    if (!before) return one;
    if (before.isEqualNode(one)) return before;
    if (before.querySelector("[id]")) { renew(before, one); return before; }
    return one;
  });
  old.replaceChildren(...kept);
}

async function look(id) {
  const old = document.getElementById(id);
  const answer = await fetch(location.pathname, { headers: { Accept: "text/html" } });
  lost.hidden = answer.ok;
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(id);
  const focus = document.activeElement && document.activeElement.id;
  if (fresh) renew(old, fresh);
  if (focus && document.activeElement.id !== focus) document.getElementById(focus)?.focus();
}

async function keepLooking(id) {
  for (;;) {
    const every = Number(document.getElementById(id).dataset.refresh);
    if (!every) return;
    await new Promise((go) => setTimeout(go, every));
    if (document.hidden) continue;
    try { await look(id); } catch { lost.hidden = false; }
  }
}

function count() {
  const picked = document.querySelectorAll("input[name=picture]:checked").length;
  document.getElementById("picked").textContent = picked ? (picked === 1 ? "1 picture" : picked + " pictures") : "click them";
}

async function give(files) {
  const drop = document.getElementById("drop"), words = document.getElementById("drop-words");
  const refused = document.getElementById("refused");
  refused.replaceChildren();
  const numbers = [];
  for (const [place, file] of [...files].entries()) {
    words.textContent = `Taking ${place + 1} of ${files.length} …`;
    let why = "the program behind this page does not answer";
    try {
      const secret = new URLSearchParams(drop.dataset.csrf).get("csrf");
      const answer = await fetch("/drop", { method: "POST", body: file, headers: { "X-CSRF": secret } });
      const said = await answer.json();
      if (answer.ok) { numbers.push(said.number); continue; }
      why = said.detail;
    } catch { /* said below */ }
    const line = document.createElement("li");
    line.textContent = `${file.name}: ${why}`;
    refused.append(line);
  }
  words.textContent = "Drop pictures here";
  await look("pictures");
  for (const number of numbers) {
    const box = document.querySelector(`input[name=picture][value="${number}"]`);
    if (box) box.checked = true;
  }
  count();
}

for (const element of document.querySelectorAll("[data-refresh]")) keepLooking(element.id);
const drop = document.getElementById("drop");
if (drop) {
  document.getElementById("labels").addEventListener("change", count);
  document.getElementById("files").addEventListener("change", (event) => {
    give([...event.target.files]).then(() => { event.target.value = ""; });
  });
  for (const kind of ["dragover", "dragenter"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) give([...event.dataTransfer.files]);
  });
  count();
}
