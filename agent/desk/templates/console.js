// Keeps the page up to date without disturbing whoever is reading or about to press a button.
"use strict";

const EVERY_MS = 4000;
const CALM_MS = 2500; // nothing is exchanged so soon after the pointer or a key was used
const SAID_MS = 30000;

let tag = null;
let waiting = null; // a newer state of the page that is not shown yet
let failures = 0;
let touched = 0;

for (const kind of ["pointermove", "pointerdown", "keydown", "scroll"]) {
  addEventListener(kind, () => { touched = performance.now(); }, { passive: true });
}

function show() {
  if (waiting === null || performance.now() - touched < CALM_MS) return;
  const now = document.getElementById("now");
  const opened = [...now.querySelectorAll("details[open]")].map((details) => details.id);
  const focused = document.activeElement && document.activeElement.id;
  now.innerHTML = waiting;
  waiting = null;
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  title();
}

function title() {
  const count = Number(document.querySelector("[data-waiting]")?.dataset.waiting || 0);
  document.title = count ? `(${count}) gridmedic` : "gridmedic";
}

async function look() {
  try {
    const answer = await fetch("/now", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
    if (answer.status === 200) {
      tag = answer.headers.get("ETag");
      waiting = await answer.text();
    } else if (answer.status !== 304) {
      throw new Error(String(answer.status));
    }
    failures = 0;
  } catch {
    failures += 1;
  }
  document.getElementById("stale").hidden = failures < 3;
}

title();
setInterval(look, EVERY_MS);
setInterval(show, 500);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
setTimeout(() => document.getElementById("said")?.remove(), SAID_MS);
// A form that is being sent is not sent again by a second press.
document.addEventListener("submit", (event) => {
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
});
