"""The submitting side: takes plans in, puts them on their queue, follows and fetches what became of them."""
