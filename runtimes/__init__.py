"""Device side: engines, one file each, and the door that loads them."""
