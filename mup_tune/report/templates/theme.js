// Light, dark or as the system has it. The palette is the page's own: its dark rules are switched on or off.
"use strict";
(() => {
  const THEMES = ["auto", "light", "dark"];
  const DARK = "(prefers-color-scheme: dark)";
  const rules = [...document.styleSheets]
    .flatMap((sheet) => [...sheet.cssRules])
    .filter((rule) => rule instanceof CSSMediaRule && rule.media.mediaText.includes(DARK))
    .map((rule) => ({ rule, auto: rule.media.mediaText }));
  let chosen = stored() ?? "auto";

  function stored() {
    try {
      return THEMES.find((theme) => theme === localStorage.getItem("mup-tune-theme"));
    } catch {
      return undefined; // a browser may refuse storage to files
    }
  }

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
    document.documentElement.style.colorScheme = theme === "auto" ? "" : theme;
    for (const { rule, auto } of rules) {
      rule.media.mediaText = { auto, light: "not all", dark: auto.replace(DARK, "(min-width: 0)") }[theme];
    }
    document.dispatchEvent(new Event("themechange"));
  }

  function button() {
    const made = document.createElement("button");
    const say = () => (made.textContent = `Theme: ${chosen}`);
    made.type = "button";
    made.className = "theme";
    made.addEventListener("click", () => {
      chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
      try {
        localStorage.setItem("mup-tune-theme", chosen);
      } catch {} // then it holds for this page alone
      apply(chosen);
      say();
    });
    say();
    document.querySelector("nav ol")?.appendChild(document.createElement("li")).append(made);
  }

  apply(chosen);
  matchMedia(DARK).addEventListener("change", () => apply(chosen));
  addEventListener("beforeprint", () => apply("light")); // canvases have no rules for paper
  addEventListener("afterprint", () => apply(chosen));
  addEventListener("DOMContentLoaded", button);
})();
