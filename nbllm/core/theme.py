"""Styles of everything that is shown: colours follow the notebook's theme, or else the system's."""

_LIGHT = """
  --nbllm-text: var(--jp-content-font-color1, var(--vscode-editor-foreground, #1f2328));
  --nbllm-muted: var(--jp-content-font-color2, var(--vscode-descriptionForeground, #59636e));
  --nbllm-line: var(--jp-border-color2, var(--vscode-panel-border, #d1d9e0));
  --nbllm-ground: var(--jp-layout-color1, var(--vscode-editor-background, #ffffff));
  --nbllm-raised: var(--jp-layout-color2, var(--vscode-editorWidget-background, #f6f8fa));
  --nbllm-series-1: #0072b2; --nbllm-series-2: #d55e00; --nbllm-series-3: #007f5f;
  --nbllm-series-4: #b0508a; --nbllm-series-5: #b07d00; --nbllm-series-6: #2b8cbe;
  --nbllm-good: #007f5f; --nbllm-bad: #c0392b;
"""
_DARK = """
  --nbllm-text: var(--jp-content-font-color1, var(--vscode-editor-foreground, #e6edf3));
  --nbllm-muted: var(--jp-content-font-color2, var(--vscode-descriptionForeground, #9aa4af));
  --nbllm-line: var(--jp-border-color2, var(--vscode-panel-border, #3d444d));
  --nbllm-ground: var(--jp-layout-color1, var(--vscode-editor-background, #0d1117));
  --nbllm-raised: var(--jp-layout-color2, var(--vscode-editorWidget-background, #161b22));
  --nbllm-series-1: #56b4e9; --nbllm-series-2: #e69f00; --nbllm-series-3: #2fc49a;
  --nbllm-series-4: #cc79a7; --nbllm-series-5: #f0e442; --nbllm-series-6: #e8743b;
  --nbllm-good: #2fc49a; --nbllm-bad: #ff7b72;
"""

# The notebook's own theme is used where there is one (JupyterLab, VS Code, Sphinx), else the system's. The class is
# repeated three times because notebooks style tables with selectors that are more specific than one class.
THEME_CSS = f"""
.nbllm {{{_LIGHT}}}
@media (prefers-color-scheme: dark) {{ .nbllm {{{_DARK}}} }}
[data-jp-theme-light="true"] .nbllm, .vscode-light .nbllm, [data-theme="light"] .nbllm {{{_LIGHT}}}
[data-jp-theme-light="false"] .nbllm, .vscode-dark .nbllm, [data-theme="dark"] .nbllm {{{_DARK}}}
.nbllm {{ color: var(--nbllm-text);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
.nbllm h1, .nbllm h2, .nbllm h3 {{ line-height: 1.25; margin: 1.4em 0 .5em; font-weight: 600;
  color: inherit; }}
.nbllm h1 {{ font-size: 1.9em; margin-top: 0; }}
.nbllm h2 {{ font-size: 1.3em; }}
.nbllm h3 {{ font-size: 1.05em; }}
.nbllm p {{ margin: .5em 0; max-width: 75ch; }}
.nbllm mark {{ color: inherit; background: color-mix(in srgb, var(--nbllm-series-1) 28%, transparent);
  border-radius: 3px; padding: 0 .15em; }}
.nbllm .muted {{ color: var(--nbllm-muted); }}
.nbllm .good {{ color: var(--nbllm-good); }}
.nbllm .bad {{ color: var(--nbllm-bad); }}
.nbllm .nbllm-scroll {{ overflow-x: auto; }}
.nbllm .nbllm-scroll .long {{ min-width: 14em; }}
.nbllm table {{ border-collapse: collapse; margin: .6em 0; font-size: .95em; border: 0; color: inherit; }}
.nbllm caption {{ caption-side: top; text-align: left; color: var(--nbllm-muted); padding-bottom: .3em;
  min-width: 16em; }}
.nbllm.nbllm.nbllm th, .nbllm.nbllm.nbllm td {{ padding: .3em .9em .3em 0;
  border: 0; border-bottom: 1px solid var(--nbllm-line); text-align: left; vertical-align: top; background: none; }}
.nbllm.nbllm.nbllm dt, .nbllm.nbllm.nbllm dd {{ float: none; display: block; width: auto; margin: 0; padding: 0;
  font-weight: 400; }}
.nbllm.nbllm.nbllm thead th {{ font-weight: 600; color: var(--nbllm-muted); border-bottom-width: 2px;
  white-space: nowrap; }}
.nbllm.nbllm.nbllm tbody th {{ font-weight: 400; color: var(--nbllm-muted); white-space: nowrap; }}
.nbllm .pairs td {{ overflow-wrap: anywhere; }}
.nbllm.nbllm.nbllm .number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.nbllm.nbllm.nbllm .unbroken {{ white-space: nowrap; }}
.nbllm.nbllm.nbllm pre {{ white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; }}
.nbllm pre {{ margin: .4em 0; padding: .7em .9em;
  color: inherit; background: var(--nbllm-raised); border: 1px solid var(--nbllm-line); border-radius: 6px;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
.nbllm pre b {{ font-weight: 600; color: var(--nbllm-muted); }}
.nbllm svg {{ display: block; max-width: 100%; height: auto; }}
.nbllm .nbllm-loss {{ border-left: 3px solid var(--nbllm-bad); padding: .1em 0 .1em .8em; margin: .5em 0;
  overflow-wrap: anywhere; }}
.nbllm.nbllm-lost [inert] {{ opacity: .5; filter: grayscale(1); }}
"""

PAGE_CSS = f"""
html {{ background: #ffffff; }}
@media (prefers-color-scheme: dark) {{ html {{ background: #0d1117; }} }}
body {{ margin: 0; }}
.nbllm-page {{ max-width: 860px; margin: 0 auto; padding: 3em 1.5em 4em; font-size: 15px;
  overflow-wrap: break-word; }}
@media print {{
  html {{ background: #ffffff; }}
  .nbllm {{{_LIGHT}}}
  .nbllm-page {{ max-width: none; padding: 0; font-size: 10.5pt; }}
  .nbllm h2, .nbllm h3, .nbllm caption, .nbllm section > p:has(+ *) {{ break-after: avoid; }}
  .nbllm figure, .nbllm tr, .nbllm pre, .nbllm p {{ break-inside: avoid; }}
  .nbllm tbody tr:nth-child(-n+2):not(:last-child) {{ break-after: avoid; }}
  .nbllm .nbllm-scroll {{ overflow: visible; }}
}}
@page {{ margin: 18mm; }}
"""
