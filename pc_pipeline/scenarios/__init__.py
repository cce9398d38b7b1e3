"""Scenarios: macro paths under named scenarios, and real macro history.

Here: what a scenario says (`definitions`, `supervisory`), what the nine series do because of it
(`scenario_means`), drawing (`generator` on `dynamics` and `marginals`), the figures assumed (`assumptions`,
`sets/`), real history (`history`, `fred_files`, `fed_files`, `quarterly`) and fitting to it (`calibration`,
`var_fit`). Not here: a network that learns from paths (`models.macro_vae`), the effect on loans (`loans`).
Method and sources: docs/methods/macro.md.
"""
