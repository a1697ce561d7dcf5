"""What a run shows to people: pictures, and one page that opens from disk. Everything comes from one plain dict."""
