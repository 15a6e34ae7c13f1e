"""What training minimises: cross entropy, or an objective composed of it and of further terms."""
