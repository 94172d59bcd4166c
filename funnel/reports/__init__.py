"""Reports: what was measured, as numbers, tables, plots and pages."""
