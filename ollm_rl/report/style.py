"""How pages and plots look."""

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1d2330;background:#fff}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #d8dde6}
table{border-collapse:collapse;font-size:.9rem;width:100%} td,th{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #e6e9ef}
td:first-child,th:first-child{text-align:left} .ci{color:#6a7485;font-size:.8rem;white-space:nowrap} .all td{font-weight:600} img{max-width:100%}
.episode{border:1px solid #d8dde6;border-radius:6px;padding:.7rem .9rem;margin:.8rem 0}
.solved{border-left:5px solid #3a7d44} .failed{border-left:5px solid #c8553d}
.problem{color:#4a5364;margin-bottom:.5rem} .trace{font-family:ui-monospace,monospace;line-height:3.1}
.t{display:inline-block;text-align:center;vertical-align:top;line-height:1.25;margin:0 1px;padding:1px 3px;border-radius:4px;cursor:default;position:relative;white-space:pre}
.t small{display:block;font-size:.62rem;color:#6a7485} .d{background:#e3edf8} .d.rare{background:#f8dfd2}
.t .o{display:none;position:absolute;z-index:2;left:0;top:2.5rem;background:#fff;border:1px solid #aeb7c6;border-radius:5px;padding:.4rem .6rem;font-size:.78rem;text-align:left;box-shadow:0 3px 10px #0002}
.t:hover .o,.t:focus .o{display:block} .picked{font-weight:700} .note{color:#4a5364;font-size:.9rem}
pre{background:#f4f6f9;padding:.7rem;overflow:auto;font-size:.8rem}
"""


PALETTE = (
    "#1f5fa8", "#c8553d", "#3a7d44", "#7a4fa3", "#b8860b", "#4a4a4a", "#2a9d9d", "#d81b84", "#8c6d46", "#9aa5b1",
)  # fmt: skip
