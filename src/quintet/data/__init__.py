"""From sources to batches: sources → documents → tokens → store → mixture → batch. No torch in here."""
