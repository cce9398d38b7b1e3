"""Reports: frames in, files and figures out.

Here: console tables (`tables`), a workbook (`workbook`), one self-contained page (`html`) and the
figures in it (`plots`). Not here: any calculation of risk; the frames come from `simulation` and
`waterfall` through the caller, and their columns are those of `schemas.tables`.
"""
