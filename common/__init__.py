"""What every room stands on: files that are whole or not there, lines of JSON, users' mistakes, sections of configs."""
