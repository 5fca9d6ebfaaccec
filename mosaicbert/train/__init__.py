"""Recipe to trained model. The only home of Composer."""
