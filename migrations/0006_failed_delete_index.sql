CREATE INDEX IF NOT EXISTS `attempts_not_ended` ON `attempts` (`delete_failed_at`) WHERE delete_failed_at IS NOT NULL AND gone_at IS NULL;
