"""The measurements of the proxy and its peers: ``python -m bench``; see README.md here."""
