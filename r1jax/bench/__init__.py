"""Speed, measured beside the machine's own limit in the same run. Printed as tables, written as JSON."""
