// Draws the Mermaid diagrams of a page. Mermaid is loaded from this site, and only by pages that have a diagram.
(() => {
  const script = document.currentScript.src;

  function isDark() {
    return document.body.dataset.mdColorScheme === "slate";
  }

  async function draw(blocks) {
    // The groups of Mermaid's dark theme are lighter than the page; these are the colours of its code blocks.
    const dark = { theme: "dark", themeVariables: { clusterBkg: "#272a35", clusterBorder: "#5c6070", edgeLabelBackground: "#272a35" } };
    mermaid.initialize({ startOnLoad: false, securityLevel: "strict", ...(isDark() ? dark : { theme: "neutral", themeVariables: {} }) });
    for (const [index, block] of blocks.entries()) {
      const { svg } = await mermaid.render(`diagram-${index}`, block.source);
      block.figure.innerHTML = svg;
    }
  }

  function start() {
    const blocks = [...document.querySelectorAll("pre.diagram")].map((element) => {
      const figure = document.createElement("div");
      figure.className = "diagram-figure";
      figure.tabIndex = 0; // a wide diagram is scrolled with the arrow keys
      element.replaceWith(figure);
      return { source: element.textContent, figure };
    });
    if (blocks.length === 0) return;
    const loader = document.createElement("script");
    loader.src = new URL("mermaid/mermaid.tiny.js", script).href;
    loader.onload = () => {
      draw(blocks);
      new MutationObserver(() => draw(blocks)).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
    };
    document.head.append(loader);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
