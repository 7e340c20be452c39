// Parts of pages that change: <div data-live="/url">. The service sends events: "fragment" replaces what is in the part, "append" and
// "prepend" add to it (at most data-live-max children), "gone" ends it. What data-live-say in it says is said aloud when it changes. The browser opens the stream again when it breaks; where the
// service answers with an error, or streams do not get through, this script tries again, and meanwhile fetches the same URL as HTML.
"use strict";

const liveState = document.querySelector("[data-live-state]");
const say = (text) => { if (liveState && liveState.textContent !== text) liveState.textContent = text; };

class Live {
  constructor(part) {
    this.part = part;
    this.failures = 0;
    this.paused = part.hasAttribute("data-live-paused");
    this.id = "";
    this.said = this.toSay();
  }

  toSay() { return this.part.querySelector("[data-live-say]")?.dataset.liveSay; }

  start() {
    if (this.source || this.timer || this.paused || this.over || document.hidden) return;
    const source = new EventSource(this.part.dataset.live);
    this.source = source;
    source.onopen = () => { this.failures = 0; this.opened = true; say("Live."); };
    source.addEventListener("fragment", (event) => this.replace(event.data));
    source.addEventListener("append", (event) => this.add("beforeend", event.data));
    source.addEventListener("prepend", (event) => this.add("afterbegin", event.data));
    source.addEventListener("gone", () => this.end());
    source.onerror = () => {
      say("Connecting again…");
      if (source.readyState === EventSource.CLOSED) this.retry(); // else the browser connects again by itself
    };
  }

  stop() {
    this.source?.close();
    clearTimeout(this.timer);
    this.source = this.timer = undefined;
  }

  end() {
    this.over = true;
    this.stop();
    say("This part no longer changes: you may have been signed out. Load the page again.");
  }

  retry() {
    this.stop();
    this.failures++;
    const wait = Math.min(1000 * 2 ** this.failures, 30000) * (0.7 + 0.6 * Math.random());
    this.timer = setTimeout(() => { this.timer = undefined; this.poll(); }, wait);
  }

  // poll fetches the part as it is, then tries the stream again.
  async poll() {
    try {
      const answer = await fetch(this.part.dataset.live, { headers: { "PQProxy-Fragment": "1", Accept: "text/html" }, redirect: "error", cache: "no-store" });
      if ([401, 403, 404].includes(answer.status)) return this.end();
      if (!answer.ok) throw new Error(answer.status);
      this.replace(await answer.text());
      say("Looked at a moment ago.");
    } catch {
      say("The service does not answer. What you see may be old; trying again…");
      return this.retry();
    }
    this.start();
  }

  // replace keeps the focus, and waits while somebody types.
  replace(html) {
    const focused = this.part.contains(document.activeElement) ? document.activeElement : null;
    if (focused?.matches("input, textarea, select")) return;
    const id = focused?.id;
    const open = [...this.part.querySelectorAll("details[open][id]")].map((d) => d.id);
    if (this.part.hasAttribute("data-live-rows")) return this.add("beforeend", html, true);
    this.part.innerHTML = html;
    for (const d of open) { const again = document.getElementById(d); if (again) again.open = true; }
    if (id) document.getElementById(id)?.focus({ preventScroll: true });
    const now = this.toSay();
    if (now !== this.said) say(this.said = now);
  }

  add(where, html, all) {
    const part = this.part;
    if (all) part.replaceChildren();
    part.insertAdjacentHTML(where, html);
    const most = Number(part.dataset.liveMax) || 200;
    while (part.children.length > most) (where === "afterbegin" ? part.lastElementChild : part.firstElementChild).remove();
  }
}

const lives = [...document.querySelectorAll("[data-live]")].map((part) => new Live(part));
lives.forEach((live) => live.start());
document.addEventListener("visibilitychange", () => lives.forEach((live) => (document.hidden ? live.stop() : live.start())));
addEventListener("pagehide", () => lives.forEach((live) => live.stop()));
addEventListener("pageshow", (event) => { if (event.persisted) lives.forEach((live) => live.start()); });

// <button data-live-toggle="id" aria-pressed="false">Pause</button> holds a part.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-live-toggle]");
  const live = button && lives.find((l) => l.part.id === button.dataset.liveToggle);
  if (!live) return;
  live.paused = !live.paused;
  button.setAttribute("aria-pressed", String(live.paused));
  live.paused ? live.stop() : live.start();
  say(live.paused ? "Held." : "Live.");
});
