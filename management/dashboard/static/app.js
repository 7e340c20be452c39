// What every page has: copy buttons, the focus after a fault, and a form that is sent once.
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
    // Not allowed, or no secure context: select the text instead.
    const text = button.parentElement.querySelector("code, pre");
    if (text) getSelection().selectAllChildren(text);
    label.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { label.textContent = before; }, 2000);
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
  // Not disabled: a disabled button is not sent, and loses the focus.
  if (event.submitter) {
    event.submitter.setAttribute("aria-disabled", "true");
    event.submitter.classList.add("busy");
  }
  // Whoever waits this long may try again: the service counts the form once.
  setTimeout(() => release(form), 15000);
});

function release(form) {
  delete form.dataset.sent;
  for (const button of form.querySelectorAll(".busy")) {
    button.removeAttribute("aria-disabled");
    button.classList.remove("busy");
  }
}

// Back from another page: the form can be sent again.
addEventListener("pageshow", (event) => {
  if (event.persisted) document.querySelectorAll("form").forEach(release);
});

document.querySelector("[data-focus]")?.focus();

// On a phone the navigation scrolls sideways: to where we are.
document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

// A menu closes with Escape and by a click elsewhere.
document.addEventListener("keydown", (event) => {
  const menu = document.querySelector("details.menu[open]");
  if (event.key !== "Escape" || !menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
