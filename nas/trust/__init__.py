"""How far a supernet's ranking can be trusted: stand-alone trainings, statistics, report."""
