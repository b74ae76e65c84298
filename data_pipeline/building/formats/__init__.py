"""One module for each kind of file that documents come in: how it is cut into units, and how a unit is read."""
