"""Colours. Every text colour has a contrast of 4.5 or more on its ground, in both schemes."""

from __future__ import annotations

_DARK = """
--ground:#0e1217;--card:#161b22;--ink:#e8ebf0;--soft:#9ba6b4;--line:#2a323c;--grid:#232a33;
--pass:#45c48f;--fail:#ff8168;--inconclusive:#e0b04a;--invalid:#c6a0ff;--neutral:#8fb7e8;
--outside:#ff81681a;--hatch:#ff81684d;--limit:#ff8168;--mark-ink:#0e1217;
--s0:#6cb2ff;--s1:#f5a04b;--s2:#5fd0b0;--s3:#e58ac6;--s4:#c9c05a;--s5:#b39ddb;
"""
_LIGHT = """
--ground:#f5f6f8;--card:#ffffff;--ink:#161b22;--soft:#5b6674;--line:#dde1e7;--grid:#e9ecf0;
--pass:#0a7550;--fail:#bd3217;--inconclusive:#8d6100;--invalid:#7339ad;--neutral:#2d5f9a;
--outside:#bd32170d;--hatch:#bd321738;--limit:#bd3217;--mark-ink:#ffffff;
--s0:#1464c0;--s1:#b85600;--s2:#007a66;--s3:#a8327f;--s4:#6b6400;--s5:#5c4a9e;
"""

PALETTE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
@media print{{:root{{color-scheme:light;{_LIGHT}--ground:#ffffff}}}}
.v-pass{{--v:var(--pass)}}.v-fail{{--v:var(--fail)}}
.v-inconclusive{{--v:var(--inconclusive)}}.v-invalid{{--v:var(--invalid)}}
"""


# The page: one column on a phone, as many as fit elsewhere, unbroken cards on paper.

LAYOUT = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;-webkit-print-color-adjust:exact;print-color-adjust:exact}
body{margin:0;background:var(--ground);color:var(--ink);
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 font-variant-numeric:tabular-nums}
header,main,footer{max-width:1160px;margin:0 auto;padding:0 20px}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
 font-size:.87em;overflow-wrap:anywhere}
h1,h2,h3,p,ul,ol,dl,dd,figure{margin:0;padding:0}
ul,ol{list-style:none}
h2{font-size:1.25rem;letter-spacing:-.01em;margin:40px 0 4px}
h3{font-size:1rem}
.how{color:var(--soft);max-width:75ch;margin-bottom:12px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.patterns{position:absolute}
.icon{width:1em;height:1em;vertical-align:-.12em;flex:none}

.hero{max-width:none;background:var(--card);border-bottom:1px solid var(--line);
 border-top:6px solid var(--v)}
.hero>*{max-width:1120px;margin-left:auto;margin-right:auto}
.eyebrow{color:var(--soft);padding-top:20px;font-size:.87rem}
h1{display:flex;flex-wrap:wrap;align-items:center;gap:0 .4em;font-size:clamp(1.7rem,6vw,2.5rem);
 line-height:1.2;letter-spacing:-.02em}
h1 b{color:var(--v)}
h1 span{font-weight:400;color:var(--ink);overflow-wrap:anywhere}
.headline{font-size:1.12rem;margin-top:6px}
.chips{display:flex;flex-wrap:wrap;gap:8px;margin-top:14px}
.chips li{border:1px solid var(--line);border-radius:99px;padding:3px 12px}
.chips li>b{margin-right:.5em}
.hero .facts{padding:18px 0 22px}

.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:10px 24px}
dt{color:var(--soft);font-size:.8rem}
dd{overflow-wrap:anywhere}
.card>h3{margin-bottom:10px}
.card+.card{margin-top:12px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:12px}
.pair .card{margin:0}

.callout{--v:var(--neutral);background:var(--card);border:1px solid var(--line);
 border-left:5px solid var(--v);border-radius:10px;padding:12px 16px;margin-top:16px}
.callout.v-invalid{--v:var(--invalid)}
.callout h2,.callout h3{font-size:1rem;margin:0 0 4px}
.callout li{overflow-wrap:anywhere}
.callout li+li{margin-top:4px}

.mark{color:var(--v);white-space:nowrap}
.mark b{margin-left:.4em;font-size:.87rem;letter-spacing:.02em}
.unjudged{color:var(--soft);font-size:.8rem;margin-left:.6em}
.targets{display:grid;gap:10px}
.targets .card{margin:0}
.target{display:grid;gap:4px 24px;align-items:center;border-left:5px solid var(--v);
 grid-template-columns:minmax(220px,1.1fr) minmax(240px,360px) minmax(250px,1fr)}
.target.faint{border-left-style:dotted}
.target h3{overflow-wrap:anywhere;line-height:1.3}
.who code{color:var(--soft)}
.numbers{display:grid;grid-template-columns:repeat(2,1fr);gap:4px 16px}
.numbers dd,.strong{font-weight:400}
.numbers .strong{font-weight:650}
.reason{grid-column:1/-1;font-size:.9rem;overflow-wrap:anywhere}
.method{display:block;color:var(--soft);font-size:.8rem}

.family{margin-top:20px}
.family>h3{font-size:1.08rem;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:12px;
 align-items:start}
figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px;
 min-width:0}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;margin-bottom:4px}
figcaption b{font-weight:600;overflow-wrap:anywhere}
.unit{color:var(--soft);font-size:.87rem;white-space:nowrap}
figure p{font-size:.87rem;margin-top:4px}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:.87rem;margin-top:6px}
.legend li{display:flex;align-items:center;gap:7px;overflow-wrap:anywhere}
.swatch{width:26px;height:10px;flex:none}
.swatch.square{width:16px;height:16px}
.scroll{overflow-x:auto;padding:4px 0;margin-top:12px}
table{border-collapse:collapse;width:100%;font-size:.87rem}
th,td{text-align:left;padding:6px 14px;white-space:nowrap;vertical-align:top}
th{color:var(--soft);font-weight:500;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{position:sticky;left:0;background:var(--card)}
tr+tr td{border-top:1px solid var(--grid)}
.right{text-align:right}
td small{display:block;color:var(--soft)}

.lane-row{display:grid;grid-template-columns:minmax(120px,260px) 1fr;gap:12px;align-items:center}
.lane-row code{overflow-wrap:anywhere;line-height:1.3}
.lane-row+.lane-row{border-top:1px solid var(--grid)}
.lane{width:100%;display:block}
.lane-axis{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;
 padding-left:272px}

.checks li{display:grid;grid-template-columns:74px 1fr;gap:10px;padding:6px 0}
.checks li+li{border-top:1px solid var(--grid)}
.checks div{overflow-wrap:anywhere}
.level{font-size:.87rem}
.level-ok{color:var(--pass)}.level-note{color:var(--neutral)}
.level-warning{color:var(--inconclusive)}.level-error{color:var(--fail)}
pre{overflow-x:auto;white-space:pre-wrap;line-height:1.6;margin:0 0 12px}
.comment{color:var(--soft)}
details{margin-top:8px}
summary{cursor:pointer;color:var(--soft)}
footer{color:var(--soft);font-size:.8rem;padding-top:36px;padding-bottom:36px;overflow-wrap:anywhere}

@media (max-width:900px){
 .target{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}
 .who{grid-column:1/-1}
}
@media (max-width:620px){
 header,main,footer{padding-left:14px;padding-right:14px}
 .target{grid-template-columns:minmax(0,1fr)}
 .facts{grid-template-columns:repeat(auto-fill,minmax(140px,1fr))}
 .lane-row{grid-template-columns:1fr;gap:2px;padding:5px 0}
 .lane-axis{padding-left:0}
}
@media print{
 body{font-size:12px}
 .card,figure,.target,.callout{break-inside:avoid}
 h2,h3{break-after:avoid}
 .scroll{overflow:visible}
 th,td{padding:3px 6px;white-space:normal}
}
"""


# How the marks of the charts look. Series differ in dashes too, states in outline too.

MARKS = """
svg text{font:10.5px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--soft);
 paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
svg text.strong{fill:var(--ink)}
svg text.limit-text{fill:var(--limit);font-weight:600}
svg text.nodata{font-size:13px}
.bar,.chart{display:block;width:100%;height:auto}
.bar{max-width:420px}
.icon .fill{fill:var(--v)}
.icon .ink{fill:none;stroke:var(--mark-ink);stroke-width:1.9;stroke-linecap:round;
 stroke-linejoin:round}
.icon .ring{fill:none;stroke:var(--v);stroke-width:2.4}
.icon .thin{stroke-width:1.6}

.inside{fill:var(--grid)}
.outside{fill:var(--outside)}
.hatching{stroke:var(--hatch);stroke-width:2}
.limit{fill:none;stroke:var(--limit);stroke-width:1.8}
.bar .limit{stroke:var(--ink)}
.ci{fill:var(--v);fill-opacity:.35}
.cap{stroke:var(--v);stroke-width:2.4}
.dot{fill:var(--v);stroke:var(--card);stroke-width:1.2}

.grid{stroke:var(--grid)}
.border{fill:none;stroke:var(--line)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.s0{stroke:var(--s0)}.s1{stroke:var(--s1);stroke-dasharray:7 3}.s2{stroke:var(--s2);stroke-dasharray:2 2.5}
.s3{stroke:var(--s3);stroke-dasharray:9 3 2 3}.s4{stroke:var(--s4);stroke-dasharray:4 3}
.s5{stroke:var(--s5);stroke-dasharray:12 3 2 3 2 3}
.sref{stroke:var(--soft);stroke-dasharray:3 4}
.whisker{stroke-width:2;stroke-dasharray:none}
.spot{stroke-width:2;stroke-dasharray:none;fill:var(--card)}
.band{fill:var(--v);fill-opacity:.16}
.estimate{stroke:var(--v);stroke-width:1.5}
.reference{stroke:var(--ink);stroke-width:1.4;stroke-dasharray:5 4}
.hollow{fill:var(--card);stroke:var(--soft);stroke-width:1.2}
.cross{fill:none;stroke:var(--soft);stroke-width:1.2}
.event.noisy{fill:var(--inconclusive)}
.event.replaced{fill:var(--card);stroke:var(--inconclusive);stroke-width:1.5}
.event.broken{fill:none;stroke:var(--invalid);stroke-width:2.4}
.lane-ok{fill:var(--s0)}
.lane-noisy{fill:var(--inconclusive)}
.lane-replaced{fill:var(--card);stroke:var(--inconclusive);stroke-width:1.6}
.lane-broken{fill:var(--invalid)}
@media (max-width:620px){.chart text,.bar text{font-size:12.5px}}
"""
