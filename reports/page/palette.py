"""Colours. Every text colour has a contrast of 4.5 or more on its ground, in both schemes."""

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
