"use strict";
document.querySelectorAll("[data-steps]").forEach(function (button) {
  button.hidden = false;
  button.addEventListener("click", function () {
    const open = button.dataset.steps === "open";
    button.closest(".trajectory").querySelectorAll("details.step").forEach(function (step) {
      step.open = open;
    });
  });
});
window.addEventListener("beforeprint", function () {
  document.querySelectorAll("details").forEach(function (part) { part.open = true; });
});
