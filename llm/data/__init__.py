"""One Example type over three sources: a theory task, real TL;DR files, a hub data set."""
