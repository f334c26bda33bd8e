"use strict";
for (const compare of document.querySelectorAll(".compare")) {
  const handle = compare.querySelector(".handle");
  const place = (percent) => compare.style.setProperty("--at", `${percent}%`);
  const follow = (event) => {
    const box = compare.getBoundingClientRect();
    const percent = (100 * (event.clientX - box.left)) / box.width;
    handle.value = percent;
    place(Math.min(Math.max(percent, 0), 100));
  };
  // Browsers keep a slider where it was when a page is loaded again.
  place(handle.value);
  handle.addEventListener("input", () => place(handle.value));
  compare.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    compare.setPointerCapture(event.pointerId);
    // A finger may be about to scroll: it moves the divider once it goes sideways, or taps.
    if (event.pointerType !== "touch") follow(event);
  });
  compare.addEventListener("pointermove", (event) => {
    if (compare.hasPointerCapture(event.pointerId)) follow(event);
  });
  compare.addEventListener("click", (event) => {
    handle.focus({ preventScroll: true });
    follow(event);
  });
}
for (const opacity of document.querySelectorAll(".opacity input")) {
  const gallery = opacity.closest(".gallery");
  const fade = () => gallery.style.setProperty("--opacity", opacity.value / 100);
  opacity.addEventListener("input", fade);
  fade();
}
