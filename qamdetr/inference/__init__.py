"""From a recording and a query to ranked moments."""
