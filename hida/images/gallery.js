"use strict";
(() => {
  // Listeners of the whole document: nothing has to wait for the end of a large page.
  document.documentElement.classList.add("live");

  const show = (range, at) => {
    const photo = Math.round(at);
    range.closest(".stage").style.setProperty("--at", at + "%");
    range.setAttribute("aria-valuetext", photo + " % photo, " + (100 - photo) + " % sketch");
  };

  const choose = (place, style) => {
    for (const sketch of place.querySelectorAll(".sketch")) sketch.classList.toggle("chosen", sketch.dataset.style === style);
    for (const button of place.querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.style === style);
  };

  const follow = (event, stage) => {
    const box = stage.getBoundingClientRect();
    const range = stage.querySelector("input");
    const at = Math.min(100, Math.max(0, 100 * (event.clientX - box.left) / box.width));
    range.value = at;
    show(range, at);
    return range;
  };

  const stageOf = (event) => event.target.closest && event.target.closest(".stage");

  document.addEventListener("input", (event) => {
    if (event.target.matches(".stage input")) show(event.target, event.target.value);
  });
  document.addEventListener("pointerdown", (event) => {
    const stage = stageOf(event);
    if (!stage || event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    // A finger may be about to scroll: it moves the divider when it moves sideways, or by a tap.
    if (event.pointerType !== "touch") follow(event, stage);
  });
  document.addEventListener("pointermove", (event) => {
    const stage = stageOf(event);
    if (stage && stage.hasPointerCapture(event.pointerId)) follow(event, stage);
  });
  document.addEventListener("dragstart", (event) => {
    if (stageOf(event)) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-style]");
    if (button) {
      const figure = button.closest("figure");
      choose(figure || document, button.dataset.style);
      return;
    }
    const stage = stageOf(event);
    // A click by keyboard or by a screen reader has no place.
    if (stage && event.detail) follow(event, stage).focus({ preventScroll: true });
  });
})();
