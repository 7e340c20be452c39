// Of every page: copy buttons, focus after a fault, forms sent once.
"use strict";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const label = button.querySelector("span") || button;
  const before = label.dataset.text || label.textContent;
  label.dataset.text = before;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    label.textContent = "Copied";
  } catch {
    // Not allowed: select the text.
    const text = button.parentElement.querySelector("code, pre");
    if (text) getSelection().selectAllChildren(text);
    label.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { label.textContent = before; }, 2000);
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  setTimeout(() => working(form), 1000);
  // It may be sent again: it counts once.
  setTimeout(() => release(form), 15000);
  if (form.method !== "post") return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
  // Not disabled: it would not be sent.
  if (event.submitter) {
    event.submitter.setAttribute("aria-disabled", "true");
    event.submitter.classList.add("busy");
  }
});

function working(form) {
  const text = form.querySelector(".working") || document.createElement("p");
  text.className = "working muted";
  text.role = "status";
  form.append(text);
  text.textContent = "Working on it…";
}

function release(form) {
  delete form.dataset.sent;
  form.querySelector(".working")?.remove();
  for (const button of form.querySelectorAll(".busy")) {
    button.removeAttribute("aria-disabled");
    button.classList.remove("busy");
  }
}

// Back from another page.
addEventListener("pageshow", (event) => {
  if (event.persisted) document.querySelectorAll("form").forEach(release);
});

document.querySelector("[data-focus]")?.focus();

// Phones scroll the navigation to where we are.
document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

document.addEventListener("keydown", (event) => {
  const menu = document.querySelector("details.menu[open]");
  if (event.key !== "Escape" || !menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
