"""From a completion to a verdict, and from verdicts to what may be said of them."""
