"""Studies, their trials, and tables of results with error bars."""
