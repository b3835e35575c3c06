"use strict";
const byId = (id) => document.getElementById(id);
/* Text is only ever put in as text: what comes from machines is never read as HTML. */
const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes || {})) if (value !== undefined && value !== null) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
};
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const say = (node, text) => { if (node.textContent !== String(text)) node.textContent = text; };
const mark = (node, name, value) => {
  if (value === undefined || value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
};
/* The two largest units, as the command line has them. */
const span = (seconds) => {
  const s = Math.max(0, Math.floor(seconds)), d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
  if (d) return `${d}d ${h}h`;
  if (h) return `${h}h ${m}m`;
  return m ? `${m}m ${s % 60}s` : `${s}s`;
};
const clockTime = (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

/* What is left of something's life, as a ring that runs down. */
const RING = 2 * Math.PI * 20;
const ring = () => draw("svg", { class: "ring", viewBox: "0 0 44 44", role: "meter", "aria-valuemin": 0 },
  draw("circle", { class: "track", cx: 22, cy: 22, r: 20 }),
  draw("circle", { class: "left", cx: 22, cy: 22, r: 20, "stroke-dasharray": RING, "stroke-dashoffset": RING }),
  draw("text", { x: 22, y: 22.4, "aria-hidden": "true" }));
const grade = (left, whole) => (left <= 0 ? "bad" : left < whole * 0.2 ? "warn" : "good");
const turn = (node, what, left, whole) => {
  const part = whole > 0 ? Math.min(1, Math.max(0, left / whole)) : 0;
  mark(node, "data-is", grade(left, whole));
  mark(node, "aria-label", what);
  mark(node, "aria-valuemax", Math.round(whole));
  mark(node, "aria-valuenow", Math.max(0, Math.round(left)));
  mark(node, "aria-valuetext", left > 0 ? `${span(left)} of ${span(whole)} left` : "expired");
  mark(node.querySelector(".left"), "stroke-dashoffset", (RING * (1 - part)).toFixed(2));
  say(node.querySelector("text"), left > 0 ? span(left) : "expired");
};

/* Asks again and again; one answer at a time. */
const follow = (url, pause, show, lost) => {
  let last = Date.now();
  const ask = async () => {
    try {
      const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
      const document = await answer.json();
      last = Date.now();
      show(document);
      lost(0);
    } catch (error) {
      lost((Date.now() - last) / 1000, error);
    }
    setTimeout(ask, document.hidden ? 5 * pause : pause);
  };
  ask();
};
