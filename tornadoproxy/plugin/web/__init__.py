"""What plugins serve to browsers and clients: pages, and ways to sign in."""
