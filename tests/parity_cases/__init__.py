"""How each kind of reference file is run through our code.

A module of this package has a dict `CASES`: kind -> function. The function
takes a `Reference` and returns our arrays by the names of the file's outputs.
Kinds, their tolerances and the reasons for these stand in `tolerances.py`.
"""
