"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Filters: a card is shown when every checked flag holds for it, and it is of the chosen type.
  const filter = (bar) => {
    const cards = all("article", bar.parentElement);
    const flags = all("input:checked", bar).map((box) => box.value);
    const type = bar.querySelector("select")?.value ?? "";
    let shown = 0;
    for (const card of cards) {
      const own = card.dataset.flags.split(" ");
      card.hidden = !flags.every((flag) => own.includes(flag)) || (type !== "" && card.dataset.type !== type);
      shown += card.hidden ? 0 : 1;
    }
    bar.querySelector("output").value = `${shown} of ${cards.length}`;
  };
  for (const bar of all(".filters")) {
    bar.addEventListener("change", () => filter(bar));
    bar.addEventListener("submit", (event) => event.preventDefault());
    bar.hidden = all("input, select", bar).length === 0;
    bar.reset(); // browsers keep what was chosen before
    filter(bar);
  }

  // A link to a card that is filtered away shows it.
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1)); // names have nothing to decode
    if (target === null) return;
    if (target.hidden) {
      const bar = target.parentElement.querySelector(".filters");
      bar.reset();
      filter(bar);
    }
    if (target.matches("article")) {
      target.scrollIntoView();
      target.focus({ preventScroll: true });
    }
  };
  addEventListener("hashchange", reveal);
  reveal();

  // j and k: the next and the previous card.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const step = { j: 1, k: -1 }[event.key];
    if (step === undefined) return;
    const cards = all("article:not([hidden])");
    if (cards.length === 0) return;
    const inside = document.activeElement.closest("article");
    const next = inside === null ? 0 : cards.indexOf(inside) + step;
    const card = cards[Math.min(cards.length - 1, Math.max(0, next))];
    card.scrollIntoView();
    card.focus({ preventScroll: true });
  });

  // Curves: the value under the pointer, or at the mark that the arrow keys move.
  for (const chart of all("svg[data-points]")) {
    const points = chart.dataset.points.split(" ").map((text) => text.split(",").map(Number));
    const mark = chart.querySelector(".reading");
    const label = mark.querySelector("text");
    let index = points.length - 1;
    const show = (chosen) => {
      index = Math.min(points.length - 1, Math.max(0, chosen));
      const [x, y, step, value] = points[index];
      mark.querySelector("circle").setAttribute("cx", x);
      mark.querySelector("circle").setAttribute("cy", y);
      mark.querySelector("line").setAttribute("x1", x);
      mark.querySelector("line").setAttribute("x2", x);
      label.setAttribute("x", x);
      label.setAttribute("text-anchor", x > chart.viewBox.baseVal.width / 2 ? "end" : "start");
      label.textContent = ` ${value} at ${step} `;
      mark.removeAttribute("visibility");
    };
    chart.addEventListener("pointermove", (event) => {
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      const near = points.map(([x]) => Math.abs(x - place.x));
      show(near.indexOf(Math.min(...near)));
    });
    const hide = () => mark.setAttribute("visibility", "hidden");
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("focus", () => show(index));
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      show(index + step);
    });
  }
})();
