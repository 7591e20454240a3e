"""A bench result as JUnit XML, for the test tab of a CI system."""
