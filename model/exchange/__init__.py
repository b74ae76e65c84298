"""Exchange with other formats: names, configs and files of Hugging Face, both ways, checked against it."""
