ALTER TABLE `cursors` ADD `spans` text DEFAULT '{}' NOT NULL;--> statement-breakpoint
ALTER TABLE `cursors` ADD `pruned_at` integer DEFAULT 0 NOT NULL;