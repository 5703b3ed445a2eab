"""HTML pages that need nothing besides themselves: what the reports of data and of a run share."""
