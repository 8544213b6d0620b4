"""How a report's page looks: light or dark as the reader's system is, from 400 pixels on."""

STYLE = """
:root { color-scheme: light dark; --text: #1b1e22; --faint: #575e66; --page: #ffffff;
  --head: #f1f3f5; --line: #d5dade; --link: #1a5fb4 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ea; --faint: #a2a9b0; --page: #15181b; --head: #22272c; --line: #3a4148;
    --link: #8ab8f5 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0 }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2rem 0 0.5rem }
header p, summary { color: var(--faint) }
p, ul { margin: 0.6rem 0 }
ul { padding-left: 1.2rem }
a { color: var(--link) }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; padding: 0.5rem 0;
  border-bottom: 1px solid var(--line) }
details { margin: 0.8rem 0 }
summary { cursor: pointer; padding: 0.3rem 0 }
.table, .picture { overflow-x: auto; margin: 0.8rem 0; border: 1px solid var(--line);
  border-radius: 6px }
.table { width: fit-content; max-width: 100% }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.35rem 0.7rem; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
tbody tr:last-child > * { border-bottom: 0 }
thead th { background: var(--head) }
tbody th { position: sticky; left: 0; background: var(--page); font-weight: 600 }
@media (max-width: 48rem) {
  tbody th:not(.number) { min-width: 9rem; white-space: normal }
}
.number { text-align: right }
.picture { padding: 0.5rem; max-width: 57rem }
.picture svg { display: block; width: 100%; min-width: 30rem; height: auto;
  color: var(--text); fill: currentColor; font-family: system-ui, sans-serif }
"""
