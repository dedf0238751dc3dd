// What is wrong with how the page is drawn, as a list of sentences; test_browser.py evaluates it.
(() => {
  const wrong = [];
  const box = (element) => element.getBoundingClientRect();
  const overlap = (a, b, slack) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > slack &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > slack;
  const inside = (a, b, slack) =>
    a.left >= b.left - slack && a.right <= b.right + slack &&
    a.top >= b.top - slack && a.bottom <= b.bottom + slack;
  const union = (boxes) => ({
    left: Math.min(...boxes.map((one) => one.left)),
    right: Math.max(...boxes.map((one) => one.right)),
    top: Math.min(...boxes.map((one) => one.top)),
    bottom: Math.max(...boxes.map((one) => one.bottom)),
  });

  const page = document.documentElement;
  if (page.scrollWidth > innerWidth) wrong.push(`page is ${page.scrollWidth} px wide`);

  for (const svg of document.querySelectorAll("svg")) {
    const name = svg.getAttribute("aria-label");
    // Matplotlib draws each text as a group with a comment that says what it reads.
    const texts = [...svg.querySelectorAll("g.text")].map((group) => ({
      says: [...group.childNodes].filter((node) => node.nodeType === 8).map((node) => node.data)
        .join("").trim(),
      box: box(group),
      fill: getComputedStyle(group.querySelector("use") ?? group).fill,
    }));
    if (texts.length < 4) wrong.push(`${name}: only ${texts.length} texts`);
    for (const [place, one] of texts.entries()) {
      if (!inside(one.box, box(svg), 0.5)) wrong.push(`${name}: "${one.says}" is clipped`);
      for (const other of texts.slice(place + 1)) {
        if (overlap(one.box, other.box, 0.5)) {
          wrong.push(`${name}: "${one.says}" lies over "${other.says}"`);
        }
      }
      judge(one.fill, svg, `${name}: "${one.says}"`);
    }
    const axes = [...svg.querySelectorAll(".matplotlib\\.axis")];
    for (const axis of axes) {
      const labels = [...axis.children].filter((child) => child.matches("g.text"));
      const ticks = axis.querySelectorAll("g.ytick g.text");
      const named = [...ticks].some((tick) => /[a-zA-Z]{3}/.test(tick.innerHTML));
      if (!labels.length && !named) wrong.push(`${name}: an axis says neither what nor in what unit`);
    }
    const ground = union(axes.flatMap((axis) => [...axis.querySelectorAll("g.line2d")].map(box)));
    for (const legend of svg.querySelectorAll("g.legend")) {
      if (overlap(box(legend), ground, 2)) wrong.push(`${name}: the legend lies over the data`);
    }
  }

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("svg, style")) continue;
    if (!element.checkVisibility()) continue;
    const says = walker.currentNode.data.trim().slice(0, 40);
    judge(getComputedStyle(element).color, element, `"${says}"`);
    let holder = element;  // what may be scrolled within the page may be wider than the window
    while (holder && !/auto|scroll/.test(getComputedStyle(holder).overflowX)) {
      holder = holder.parentElement;
    }
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    if (!holder && range.getBoundingClientRect().right > innerWidth + 0.5) {
      wrong.push(`"${says}" leaves the window`);
    }
  }
  return wrong;

  // Text needs a contrast of 4.5 to what is behind it (WCAG 2.2, 1.4.3, AA).
  function judge(colour, element, what) {
    let ground = element;
    const clear = (of) => /, 0\)$|transparent/.test(getComputedStyle(of).backgroundColor);
    while (ground.parentElement && clear(ground)) ground = ground.parentElement;
    const [a, b] = [colour, getComputedStyle(ground).backgroundColor].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (!(contrast >= 4.5)) wrong.push(`${what} has a contrast of ${contrast.toFixed(2)}`);
  }

  function luminance(colour) {
    const linear = colour.match(/[\d.]+/g).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  }
})()
