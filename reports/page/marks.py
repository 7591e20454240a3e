"""How the marks of the charts look. Series differ in dashes too, states in outline too."""

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
